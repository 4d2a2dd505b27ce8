"""What people look at: still pictures, the report, and the 3D page."""

from mm3dad.view.entry import view_path
from mm3dad.view.page3d import write_cloud_page
from mm3dad.view.panel import panel
from mm3dad.view.report import write_report
from mm3dad.view.sheet import write_sheet

__all__ = ["panel", "view_path", "write_cloud_page", "write_report", "write_sheet"]
